"""A judge in this process: any causal LM of transformers, greedy, in batches."""

import logging
from collections.abc import Iterator, Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from salmonn.config.schema import JudgeConfig
from salmonn.model.model_folders import loading, require_all_weights

logger = logging.getLogger(__name__)


def ask_local(prompts: Sequence[str], config: JudgeConfig, device: str) -> Iterator[tuple[int, str]]:
    """Yield (index, reply), short prompts first. Raises UserError if the model cannot be loaded."""
    path = config.local_path
    with loading("evaluate.judge.local_path", path):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        require_all_weights(info, path)
    model = model.to(device).eval()
    if not tokenizer.chat_template:
        logger.warning("the judge %s has no chat template: it is given the bare prompts", path)
    end = model.generation_config.eos_token_id
    if end is None:
        end = tokenizer.eos_token_id
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    search = GenerationConfig(
        max_new_tokens=config.max_tokens, do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    model.generation_config = GenerationConfig()  # a folder's own settings may sample

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), config.concurrency):
        batch = order[start : start + config.concurrency]
        inputs = _tokenize(tokenizer, [prompts[index] for index in batch]).to(device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.inference_mode():
            replies = model.generate(input_ids=ids, attention_mask=mask, generation_config=search)[:, ids.shape[1] :]
        yield from zip(batch, tokenizer.batch_decode(replies, skip_special_tokens=True), strict=True)


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> BatchEncoding:
    if not tokenizer.chat_template:
        return tokenizer([f"{prompt}\n" for prompt in prompts], padding=True, return_tensors="pt")
    texts = [
        # enable_thinking is for the templates that know it; the others do not look at it
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for prompt in prompts
    ]
    return tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
