"""Where the model looks: the Q-Former's attention to audio frames, the LLM's attention to audio tokens.

The fused attention that the model runs with keeps no weights, so they are computed again for one clip.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from salmonn.model.llm_input import build_llm_inputs
from salmonn.model.qformer import Layer, MultiHeadAttention
from salmonn.model.salmonn import SALMONN
from salmonn.model.sound_tokens import sound_tokens


@torch.no_grad()
def encode_with_attention(model: SALMONN, raw_wav: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Encode a clip, and tell how each window's queries share their attention among its frames.

    raw_wav [1, N] 16 kHz -> embeddings [1, A, H] of `encode_speech`, weights [layers, W, Q, F], the mean over the
    heads; sums over the F frames of a window are 1. Whisper's and BEATs' features are one key per frame, so there
    is one weight for both. Last, what spells the clip, of a model that spells.
    """
    found: list[Tensor] = []

    def keep(attention: MultiHeadAttention, inputs: tuple[Tensor, Tensor], _output: Tensor) -> None:
        found.append(attention.weights(*inputs).mean(dim=1).float())

    layers = [module for module in model.connector.speech_Qformer.modules() if isinstance(module, Layer)]
    hooks = [layer.crossattention.self.register_forward_hook(keep) for layer in layers]
    try:
        [embeds], spelling = model.encode_and_spell(raw_wav)
    finally:
        for hook in hooks:
            hook.remove()
    return embeds[None], torch.stack(found), spelling


@torch.no_grad()
def windows_of_tokens(model: SALMONN, n_windows: int, spelling: Sequence[Tensor] = ()) -> Tensor:
    """Which of a clip's W windows each token comes from that the LLM reads: shares [A, W], each row's sum 1.

    `spelling` as of `encode_with_attention`: a word is of the windows that say it, a sound token of its stretch.
    """
    of_audio = torch.eye(n_windows, device=model.device).repeat_interleave(model.config.num_speech_query_token, dim=0)
    if not spelling:
        return of_audio
    words = model.origins(spelling)[0] @ of_audio
    if model.config.sound_seconds is None:
        return words
    [n_frames], (_, stride) = model.connector.frames_of([n_windows]), model.connector.window
    window_of_frame = (torch.arange(n_frames, device=model.device) // stride).clamp(max=n_windows - 1)
    of_frames = F.one_hot(window_of_frame, n_windows).float()  # a sound token is the mean of its frames
    return torch.cat([*sound_tokens([of_frames], model.config.sound_seconds, nn.Identity()), words])


@torch.no_grad()
def answer_attention(model: SALMONN, embeds: Tensor, prompt: str, token_ids: Sequence[int]) -> Tensor:
    """How much each token of an answer attends to each audio token, from the position that predicts it.

    embeds [1, A, H] of `encode_speech`, a complete templated prompt, T token ids of the answer ->
    [layers, heads, T, A]; what is left of 1 goes to the text. All of the prompt and answer is read at once.
    """
    llm_inputs = build_llm_inputs(model.tokenizer, [embeds.shape[1]], [prompt], [list(token_ids)])
    inputs = model._embed(llm_inputs, embeds)
    llm = model._causal_lm()
    with eager_attention(llm):
        output = llm.get_decoder()(inputs_embeds=inputs, use_cache=False, output_attentions=True)
    predicts = llm_inputs.is_target[0].nonzero()[:, 0] - 1  # [T]
    audio = llm_inputs.is_audio[0].nonzero()[:, 0]  # [A]
    return torch.stack([weights[0][:, predicts][:, :, audio].float() for weights in output.attentions])


def loudest_heads(weights: Tensor, share: float) -> Tensor:
    """The mean over those heads of all layers that attend most to the audio: [layers, heads, T, A] -> [T, A].

    `share` of all heads, at least one; the others mostly read the text.
    """
    heads = weights.flatten(0, 1)  # [layers * heads, T, A]
    n = max(1, round(share * len(heads)))
    return heads[heads.sum(dim=(1, 2)).topk(n).indices].mean(dim=0)


@contextmanager
def eager_attention(llm: PreTrainedModel) -> Iterator[None]:
    """Let the LLM attend by the plain way, which gives its weights."""
    usual = llm.config._attn_implementation
    llm.set_attn_implementation("eager")
    try:
        yield
    finally:
        llm.set_attn_implementation(usual)


# Thai, Lao, Burmese, Khmer, Chinese and Japanese, with their signs; Korean parts its words
_WITHOUT_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_INCOMPLETE = "\ufffd"  # a letter of which some bytes are still to come


def split_words(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The words of an answer with the places of their tokens; special tokens are of no word.

    Words are parted by spaces; in scripts that have none, each token is one, or those tokens that make a letter.
    """
    places: list[list[int]] = []
    before = piece = ""
    letters: list[int] = []  # places of the tokens that are to be looked at together
    last = max((place for place, token in enumerate(token_ids) if token not in tokenizer.all_special_ids), default=-1)
    for place, token in enumerate(token_ids[: last + 1]):
        if token in tokenizer.all_special_ids:
            continue
        letters.append(place)
        text = tokenizer.decode(token_ids[: place + 1], skip_special_tokens=True)
        if text.endswith(_INCOMPLETE) and place < last:
            continue
        goes_on = not _WITHOUT_SPACES.match(piece[-1:])
        piece, before = text[len(before) :], text
        if not places or piece[:1].isspace() or not goes_on or _WITHOUT_SPACES.match(piece):
            places.append([])
        places[-1] += letters
        letters = []
    # decoded as a whole: a character may be several byte tokens
    return [(tokenizer.decode([token_ids[place] for place in word]).strip(), word) for word in places]
