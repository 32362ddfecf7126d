"""How near an LLM in 8 bits is to itself in float32: its loss, and the gradients that reach audio and adapters.

  python experiments/int8_gradients.py --llm output/small/models/smollm2-135m-instruct --text README.md

Rows of a text begin with the LLM's first token; a part behind it stands where audio would, the loss is over the
second half. Told for bfloat16 autocast, bitsandbytes' 8 bits and ours, and for weights that were rounded as ours and
then multiply in float32: the loss, and the cosine between the gradients and those of float32, of the embeddings where
audio would stand and of what LoRA would train (B; A is random).
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoTokenizer, PreTrainedModel  # noqa: E402

from salmonn.common.cli import command_parser, run_cli  # noqa: E402
from salmonn.common.errors import UserError  # noqa: E402
from salmonn.config.loading import model_config  # noqa: E402
from salmonn.model.int8 import Int8Linear, turn  # noqa: E402
from salmonn.model.llm import load_llm  # noqa: E402
from salmonn.model.lora import add_lora, lora_layers  # noqa: E402

CPU = torch.device("cpu")
WAYS = {  # how the LLM is quantised, whether under autocast, and whether only its weights are rounded
    "float32": ("none", False, False),
    "bfloat16 autocast": ("none", True, False),
    "8bit": ("8bit", False, False),
    "int8": ("int8", False, False),
    "weights alone": ("int8", False, True),
}
INSTRUCTION = 4  # tokens in front of the audio's places


def main() -> None:
    """Print a line per way."""
    args = parse_arguments()
    for line in compare(args.llm, args.text.read_text(encoding="utf-8"), args.rows, args.tokens):
        print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--llm", required=True, metavar="DIR", help="folder of a causal language model")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help="text that it reads")
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="of the text (default 2)")
    parser.add_argument("--tokens", type=int, default=96, metavar="N", help="of a row (default 96)")
    return parser.parse_args()


def compare(llm: str, text: str, rows: int, tokens: int) -> Iterator[str]:
    """A line per way. Raises UserError for a text that is too short."""
    tokenizer = AutoTokenizer.from_pretrained(llm, trust_remote_code=False)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) < rows * tokens:
        raise UserError(f"the text has {len(ids)} tokens: {rows} rows of {tokens} need {rows * tokens}")
    ids = ids[: rows * tokens].view(rows, tokens)  # [B, L]
    ids[:, 0] = ids[0, 0] if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    exact: tuple[float, Tensor, Tensor] | None = None
    for way, how in WAYS.items():
        found = loss_and_gradients(llm, *how, ids)
        exact = exact or found
        of_audio, of_lora = (F.cosine_similarity(a, b, dim=0).item() for a, b in zip(found[1:], exact[1:], strict=True))
        loss = f"loss {found[0]:.4f} ({100 * (found[0] / exact[0] - 1):+.3f} %)"
        yield f"{way:18} {loss}, cosine of the gradients: audio {of_audio:.5f}, LoRA {of_lora:.5f}"


def loss_and_gradients(
    folder: str, quantisation: str, is_half: bool, in_float: bool, ids: Tensor
) -> tuple[float, Tensor, Tensor]:
    """The loss, and flat in float64 the gradients of embeddings and of LoRA's B; `in_float`: as `multiply_in_float`."""
    section = model_config({"llama_path": folder, "llm_quantization": quantisation, "llm_dtype": "float32"})
    torch.manual_seed(0)
    llm: PreTrainedModel = load_llm(section, CPU)
    if in_float:
        multiply_in_float(llm)
    layers = lora_layers(add_lora(llm, section).eval())
    embeddings = llm.get_input_embeddings()(ids).detach().requires_grad_()
    half = ids.shape[1] // 2
    with torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
        logits = llm(inputs_embeds=embeddings).logits[:, half - 1 : -1]
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, half:].flatten())
    adapters = [layer.lora_B["default"].weight for layer in layers]
    of_embeddings, *of_adapters = torch.autograd.grad(loss, (embeddings, *adapters))
    joined = torch.cat([gradient.flatten() for gradient in of_adapters])
    return loss.item(), of_embeddings[:, INSTRUCTION:half].flatten().double(), joined.double()


def multiply_in_float(llm: PreTrainedModel) -> None:
    """Give an LLM back its plain layers, with the values that their weights have in 8 bits."""
    for name, layer in [(name, part) for name, part in llm.named_modules() if isinstance(part, Int8Linear)]:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")  # which draws nothing
        plain.bias = layer.bias
        turned = layer.weight.float() * layer.scale[:, None]
        plain.weight = nn.Parameter(turn(turn(turned).t()).t().contiguous(), requires_grad=False)
        llm.set_submodule(name, plain)


if __name__ == "__main__":
    run_cli(main)
