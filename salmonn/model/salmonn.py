"""SALMONN (paper section 3): Whisper and BEATs, window-level Q-Former, LLM with LoRA."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from salmonn.audio.decode import MIN_SECONDS, SAMPLE_RATE
from salmonn.common.device import AMP_DTYPES, device_of, hold_rounded, own_precision, to_device
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.checks import NOTHING_SPELLED
from salmonn.config.loading import generate_config, model_config
from salmonn.model import checkpoint, hub, pretrained, prompts
from salmonn.model.activation_memory import reduce_activation_memory, set_gradient_checkpointing
from salmonn.model.beats import BEATs, load_beats
from salmonn.model.encoders import EncoderOutputCache, EncoderOutputs
from salmonn.model.features import LogMel, fbank_lengths, kaldi_fbank
from salmonn.model.generation import answer, prefill, search_settings
from salmonn.model.hearing import require_same_hearing, tells_other_llm
from salmonn.model.joint_search import JointScores
from salmonn.model.lineage import LINEAGE, read_lineage, written
from salmonn.model.llm import hidden_at, load_llm
from salmonn.model.llm_input import LLMInputs, build_llm_inputs, tokenize
from salmonn.model.lora import add_lora, lora_layers, set_adapter_precision
from salmonn.model.loss import target_loss
from salmonn.model.prompts import TRANSCRIPT
from salmonn.model.qformer import Connector
from salmonn.model.sharding import is_shared, lending, shard_blocks
from salmonn.model.sound_tokens import n_stretches, sound_projection, sound_tokens
from salmonn.model.spelling import Spelling
from salmonn.model.tokenizer import load_tokenizer
from salmonn.model.whisper import heard_frames, in_window, load_whisper, require_features_fit

MOST_VICUNA_TOKENS = 32_100  # with a few added; Llama 3, of the same width, has 128,256


class SALMONN(Spelling):
    """The whole model; attribute names make the published parameter names.

    A sample's result is that of a batch of one, whatever else the batch holds.
    """

    connector: Connector

    def __init__(
        self,
        config: DictConfig,
        log_mel: LogMel,
        speech_encoder: PreTrainedModel,
        beats: BEATs | None,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Join loaded parts; `config` is a complete `model` section. `from_config` is the usual way in."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.log_mel = log_mel
        self.speech_encoder = speech_encoder
        self.beats = beats
        self.encoder_cache: EncoderOutputCache | None = None  # of a run that hears its clips again
        require_features_fit(config, log_mel, speech_encoder.config)
        self._freeze_encoders()
        reduce_activation_memory(llm)
        if config.gradient_checkpointing:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.llama_model = add_lora(llm, config) if config.lora else llm
        self._adapted = lora_layers(self.llama_model)  # kept: a walk through all modules takes its time
        if config.lora_scaling is not None:
            self.lora_scaling = config.lora_scaling
        self._add_connector(llm.get_input_embeddings().embedding_dim)
        if config.spelled_tokens:
            self._read_spelling()

        template = config.prompt_template
        self.train_prompts = prompts.load_train_prompts(config.prompt_path, template) if config.prompt_path else {}
        self.test_prompts = (
            prompts.load_test_prompts(config.test_prompt_path, template) if config.test_prompt_path else {}
        )
        self.end_id: int = tokenizer.convert_tokens_to_ids(config.end_sym)
        self.train(self.training)

    def _freeze_encoders(self) -> None:
        dtype = getattr(torch, self.config.encoder_dtype)
        for encoder in self._frozen_encoders():
            encoder.requires_grad_(False).to(dtype)

    def _frozen_encoders(self) -> list[nn.Module]:
        """Those that are there and are not trained."""
        pairs = (self.speech_encoder, self.config.freeze_whisper), (self.beats, self.config.freeze_beats)
        return [encoder for encoder, is_frozen in pairs if encoder is not None and is_frozen]

    def hold_encoders_rounded(self, run: DictConfig) -> None:
        """Where all that is heard is heard under autocast, and behind `open_cache`, which knows them as they are.

        See `hold_rounded`.
        """
        for encoder in self._frozen_encoders() if run.amp else ():
            hold_rounded(encoder, AMP_DTYPES[run.amp_dtype])

    def _add_connector(self, llm_width: int) -> None:
        """The connector, its parts registered here by the published parameter names and not as `connector.*`."""
        encoder, audio_width = self.speech_encoder.config, 0 if self.beats is None else self.beats.width
        connector = Connector(self.config, encoder.d_model, audio_width, llm_width, encoder.max_source_positions)
        for name, module in connector.named_children():
            self.add_module(name, module)
        self.speech_query_tokens = connector.speech_query_tokens
        self.__dict__["connector"] = connector

    def _read_spelling(self) -> None:
        """Freeze what stage 0 has learned: the LLM's gradient, which is large through a distribution, unlearns it."""
        self.add_spelling()
        self.connector.requires_grad_(False)
        self.ctc_blank.requires_grad_(False)
        self.ctc_log_scale.requires_grad_(False)
        if self.config.sound_seconds is not None:
            width, llm_width = self.connector.context_width, len(self.ctc_blank)
            self.sound_proj = sound_projection(width, llm_width, self.embedding_norm)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | DictConfig, device: str | torch.device = "cpu", shard_llm: bool = False
    ) -> "SALMONN":
        """Load every part that a `model` section names, and its checkpoint if there is one.

        `shard_llm`: each process of the group holds a share of the LLM's blocks.
        Raises UserError for unknown keys and for checkpoints that do not fit.
        """
        config = model_config(config)
        device = torch.device(device)
        paths = filter(None, (config.speech_llama_proj_model, config.ckpt))
        starts = {}
        for path in paths:  # a wrong file is known before the big ones are loaded
            content = checkpoint.read(path, lazily=True)
            require_same_hearing(config, content, path, only_told=path != config.ckpt)
            starts[path] = content | {"model": {}}  # its parameters are read when there is a model,
            del content  # and are not held until then
        log_mel, speech_encoder = load_whisper(config)
        model = cls(
            config,
            log_mel,
            speech_encoder,
            load_beats(config.beats_path) if config.beats_path else None,
            cls._load_llm(config, device),
            load_tokenizer(config),
        )
        if config.speech_llama_proj_model:
            checkpoint.load_parameters(model, config.speech_llama_proj_model, partial=True)
        if config.ckpt:
            checkpoint.load_parameters(model, config.ckpt)
            model.tell_other_vicuna(starts[config.ckpt], config.ckpt)
        if shard_llm:
            shard_blocks(model._causal_lm(), device)
        return model.to(device)

    def tell_other_vicuna(self, content: Mapping[str, Any], path: str | Path) -> None:
        """Warn where the LLM is a LLaMA of another version than the released checkpoint of its width needs.

        Not where the content of the checkpoint tells that its LLM has another name: `require_same_hearing` has warned.
        """
        llm = self.llama_model.config
        if llm.model_type != "llama" or llm.vocab_size > MOST_VICUNA_TOKENS:
            return
        if not tells_other_llm(self.config, content, path):
            checkpoint.tell_other_vicuna(llm.hidden_size, llm.max_position_embeddings, str(path))

    @classmethod
    def _load_llm(cls, config: DictConfig, device: torch.device) -> PreTrainedModel:
        return load_llm(config, device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        **overrides: Any,
    ) -> "SALMONN":
        """Load a folder of `save_pretrained` or util/convert.py, or USER/NAME of the Hugging Face Hub.

        `revision`: of the hub, a branch, tag or commit. `overrides`: keys of the `model` section. Raises UserError.
        """
        if hub.is_hub_name(folder):
            folder = hub.fetched(str(folder), revision)
        elif revision:
            raise UserError(f"{folder} is not on the hub, so it has no revision {revision!r}")
        return cls.from_config(pretrained.model_section(folder, overrides), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the trained parameters and the `model` section, the present LoRA scaling in it; no frozen backbones."""
        pretrained.save(folder, checkpoint.own_parameters(self), self._section(), self._origin())

    def push_to_hub(self, name: str, private: bool = True, licence: str = "") -> str:
        """Publish what `save_pretrained` writes, and a card, as USER/NAME; returns its address. Raises UserError.

        util/publish.py does so for a checkpoint, with its scores in the card.
        """
        hub.require_name(name)
        with tempfile.TemporaryDirectory(prefix="salmonn-publish-") as folder:
            parameters = checkpoint.own_parameters(self)
            hub.write_folder(folder, name, parameters, self._section(), self._origin(), licence)
            return hub.publish(folder, name, private)

    def _section(self) -> DictConfig:
        section = self.config.copy()
        if section.lora:
            as_trained = section.lora_alpha / section.lora_rank
            section.lora_scaling = None if self.lora_scaling == as_trained else self.lora_scaling
        return section

    def _origin(self) -> dict[str, Any]:
        """The runs that its checkpoint names, if it is still there, as a folder holds them."""
        return {LINEAGE: written(read_lineage(self.config.ckpt) if Path(self.config.ckpt).is_file() else [])}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.speech_query_tokens.device

    @property
    def max_seconds(self) -> float:
        """Length of audio that Whisper hears: 30 s for the published sizes."""
        return self.log_mel.max_seconds

    @property
    def lora_scaling(self) -> float:
        """Weight of the adapters' output, lora_alpha / lora_rank as trained; settable at any time."""
        return self._adapted[0].scaling["default"] if self._adapted else 0.0

    @lora_scaling.setter
    def lora_scaling(self, scaling: float) -> None:
        if not self._adapted:
            raise UserError("this model has no LoRA (model.lora = False), so there is no scaling to set")
        for layer in self._adapted:
            layer.scaling["default"] = float(scaling)

    def train(self, mode: bool = True) -> "SALMONN":
        """Set training mode; frozen modules stay in eval mode (no dropout, no BEATs layer drop)."""
        super().train(mode)
        for encoder in self._frozen_encoders():
            encoder.eval()
        if self.config.freeze_speech_QFormer or self.config.spelled_tokens:
            self.connector.speech_Qformer.eval()
        self.llama_model.eval()
        for layer in self._adapted:
            layer.lora_dropout.train(mode)
        if self.config.gradient_checkpointing:
            set_gradient_checkpointing(self.llama_model, mode)
        return self

    # ---- audio -> embeddings

    def encode_speech(
        self, raw_wav: Tensor, padding_mask: Tensor | None = None, spectrogram: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode audio into the LLM's embedding space.

        raw_wav [B, N] 16 kHz (clips under 1 s count as zero-padded to 1 s, over `max_seconds` are
        cut), padding_mask [B, N] True = padding, spectrogram [B, n_mels, frames] if already computed.
        Returns embeddings [B, A, H] and their mask [B, A] of ones; A = 88 for the published 30 s. With
        `model.only_filled_windows` A is that of the longest clip, and the mask 0 behind the others'.
        """
        clips = self.encode_clips(raw_wav, padding_mask, spectrogram)
        ones = [torch.ones(len(clip), dtype=torch.long, device=clip.device) for clip in clips]
        return pad_sequence(clips, batch_first=True), pad_sequence(ones, batch_first=True)

    def encode_clips(
        self, raw_wav: Tensor, padding_mask: Tensor | None = None, spectrogram: Tensor | None = None
    ) -> list[Tensor]:
        """What the LLM reads [A, H] of each clip, arguments as `encode_speech`.

        With `model.only_filled_windows` how many tokens there are follows from the clip's own length, with
        `model.spelled_tokens` from what it says.
        """
        return self.encode_and_spell(raw_wav, padding_mask, spectrogram)[0]

    def encode_and_spell(
        self, raw_wav: Tensor, padding_mask: Tensor | None = None, spectrogram: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As `encode_clips`, and with `model.spelled_tokens` the audio tokens [A, H] that spell it, else none."""
        encoded, lengths = self._encode(raw_wav, padding_mask, spectrogram)
        if self.config.spelled_tokens:
            return self._read(self.connector.heard(encoded, lengths))
        if self.config.only_filled_windows:
            return self.connector.filled(encoded, lengths), []
        return [*self.connector(encoded)], []

    def _read(self, clips: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the LLM reads of clips' features [K, C] with `model.spelled_tokens`, and what spells it."""
        with torch.no_grad():
            spelling = self.connector.tokens_of(clips)
            words = self.spelled(spelling)
        if self.config.sound_seconds is None:
            return words, spelling
        sounds = sound_tokens(clips, self.config.sound_seconds, self.sound_proj)
        return [torch.cat(both) for both in zip(sounds, words, strict=True)], spelling

    def _clean_audio(self, raw_wav: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Zeroes in the padding, at least 1 s, at most what Whisper hears; with the lengths [B] in samples.

        Wherever the audio is; of a mask on the host, the lengths are there.
        """
        if raw_wav.ndim != 2:
            raise UserError(f"raw_wav must be [batch, samples], got shape {list(raw_wav.shape)}")
        if padding_mask is None:
            padding_mask = torch.zeros_like(raw_wav, dtype=torch.bool)
        # counted where the mask comes from: of one on the host, the device need not be waited for
        lengths, shortest = self._heard((~padding_mask).sum(dim=1)), int(MIN_SECONDS * SAMPLE_RATE)
        raw_wav = raw_wav.masked_fill(to_device(padding_mask, raw_wav.device), 0.0)[:, : self.log_mel.n_samples]
        return F.pad(raw_wav, (0, max(0, shortest - raw_wav.shape[1]))), lengths

    def n_audio_tokens(self, n_samples: Sequence[int]) -> list[int]:
        """How many audio tokens `encode_clips` will give of clips of so many samples, at most: see `spelled_tokens`."""
        lengths = self._heard(torch.tensor(n_samples)).tolist()
        n_tokens = self.connector.n_tokens(lengths)
        if self.config.sound_seconds is not None:
            frames = self.connector.n_frames(lengths)
            n_tokens = [n + n_stretches(k, self.config.sound_seconds) for n, k in zip(n_tokens, frames, strict=True)]
        return n_tokens

    def _heard(self, n_samples: Tensor) -> Tensor:
        """Samples [B] that count of clips [B]: at least 1 s, at most what Whisper hears."""
        return n_samples.clamp(min=int(MIN_SECONDS * SAMPLE_RATE), max=self.log_mel.n_samples)

    def _encode(
        self, raw_wav: Tensor, padding_mask: Tensor | None, spectrogram: Tensor | None
    ) -> tuple[EncoderOutputs, Tensor]:
        """What the encoders say of clips, from the cache where there is one, and the clips' lengths [B] in samples."""
        if self.encoder_cache is None or spectrogram is not None:
            raw_wav, lengths = self._clean_audio(to_device(raw_wav, self.device), padding_mask)
            return self.run_encoders(raw_wav, lengths, spectrogram), lengths
        raw_wav, lengths = self._clean_audio(raw_wav, padding_mask)  # on the host, if it is there: the cache reads it
        return self.encoder_cache.encode(raw_wav, lengths, self.run_encoders, self.device), lengths

    def run_encoders(self, raw_wav: Tensor, lengths: Tensor, spectrogram: Tensor | None = None) -> EncoderOutputs:
        """Whisper and BEATs on clips [B, N], zero behind their lengths [B], in samples."""
        raw_wav = to_device(raw_wav, self.device)
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_whisper),
            own_precision(self.speech_encoder),
        ):
            log_mel = self.log_mel(raw_wav) if spectrogram is None else to_device(spectrogram, self.device)
            speech = self._run_whisper(log_mel.to(self.speech_encoder.dtype), lengths)
        if self.beats is None:
            return EncoderOutputs(speech)
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_beats),
            own_precision(self.beats),
        ):
            fbank = kaldi_fbank(raw_wav).to(self.beats.dtype)  # [B, T, 128]
            return EncoderOutputs(speech, *self.beats(fbank, fbank_lengths(to_device(lengths, self.device))))

    def _run_whisper(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """[B, n_mels, 2 T] of clips of lengths [B] in samples -> [B, T, D_whisper].

        With `model.whisper_silence` clips of like length are heard together in a window of their own, with zeros
        behind it in the result.
        """
        silence, encoder = self.config.whisper_silence, self.speech_encoder
        if silence is None:
            return encoder(log_mel).last_hidden_state
        frames = [heard_frames(n, silence, self.log_mel.n_frames) for n in lengths.tolist()]
        heard: dict[int, Tensor] = {}
        for window in set(frames):
            rows = [i for i, n in enumerate(frames) if n == window]
            with in_window(encoder, window):
                heard |= zip(rows, encoder(log_mel[rows, :, : 2 * window]).last_hidden_state, strict=True)
        return pad_sequence([heard[i] for i in range(len(frames))], batch_first=True)

    # ---- embeddings -> loss

    def forward(self, samples: Samples, verbose: bool = False) -> dict[str, Tensor]:
        """Loss of a batch, the mean over all its target tokens.

        samples: raw_wav [B, N], padding_mask [B, N], text, task, Q (lists); optional `spectrogram`
        and `prompts`, complete templated strings that replace the random choice.
        With `verbose` also what `answer_loss` counts.
        """
        embeds = self.encode_clips(samples["raw_wav"], samples.get("padding_mask"), samples.get("spectrogram"))
        result = self.loss_of_batch(embeds, samples)
        return result if verbose else {"loss": result["loss"]}

    def loss_of_batch(self, embeds: Sequence[Tensor], samples: Samples) -> dict[str, Tensor]:
        """`answer_loss` of a batch whose clips are encoded."""
        chosen = samples.get("prompts") or self.choose_prompts(samples)
        return self.answer_loss(embeds, chosen, samples["text"])

    def choose_prompts(self, samples: Samples, rng: Random | None = None) -> list[str] | None:
        """A random training prompt per sample; None without prompt_path (then no prompt, as published)."""
        if not self.train_prompts:
            return None
        questions = samples.get("Q") or [""] * len(samples["task"])
        return prompts.choose_prompts(self.train_prompts, samples["task"], questions, rng, self.config.multi_prompt)

    def answer_loss(
        self, embeds: Tensor | Sequence[Tensor], chosen: Sequence[str] | None, texts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Cross-entropy of the target tokens behind prompt and audio: [B, A, H], or each clip's [A, H].

        Returns scalars loss (mean over target tokens), correct and total (tokens), cut (targets
        that lost their end to max_txt_len), and per sample sample_loss,
        sample_correct and sample_total [B].
        """
        hidden, target_ids, row, cut = self.target_states(embeds, chosen, texts)
        loss, token_loss, is_correct = target_loss(self._causal_lm(), hidden, target_ids)
        sample_sum, sample_correct, sample_total = (
            torch.zeros(len(texts), device=row.device).index_add_(0, row, values)
            for values in (token_loss, is_correct.float(), torch.ones_like(token_loss))
        )
        return {
            "loss": loss,
            "correct": is_correct.sum(),
            "total": torch.full((), target_ids.numel(), device=row.device),
            "cut": torch.full((), cut, device=row.device),
            "sample_loss": sample_sum / sample_total,
            "sample_correct": sample_correct,
            "sample_total": sample_total,
        }

    def target_states(
        self, embeds: Tensor | Sequence[Tensor], chosen: Sequence[str] | None, texts: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """What predicts the target tokens of a batch, arguments as `answer_loss`.

        Hidden states [N, H], the tokens' ids [N] and rows [N], and how many texts are cut.
        """
        # Padding stands behind every token that counts, so causal attention needs no mask for it.
        llm_inputs, cut = self.lay_out([len(clip) for clip in embeds], chosen, texts)
        target_ids = to_device(llm_inputs.token_ids[llm_inputs.is_target], self.device)
        row, column = self._places(llm_inputs.is_target)
        set_adapter_precision(self._adapted)
        # what is computed again in the backward pass attends as the library's settings say then
        may_be_eager = self.config.llm_attention == "auto" and not self.config.gradient_checkpointing
        before = column - 1  # the position before a token predicts it
        hidden = hidden_at(self._causal_lm(), self._embed(llm_inputs, embeds), row, before, may_be_eager)
        return hidden, target_ids, row, cut

    def lay_out(
        self, n_audio: Sequence[int], chosen: Sequence[str] | None, texts: Sequence[str]
    ) -> tuple[LLMInputs, int]:
        """What stands where when texts are to be learned behind so many audio tokens, and how many of them are cut."""
        targets = tokenize(self.tokenizer, [text + self.config.end_sym for text in texts])
        cut = sum(len(ids) > self.config.max_txt_len for ids in targets)
        targets = [ids[: self.config.max_txt_len] for ids in targets]
        return build_llm_inputs(self.tokenizer, n_audio, chosen, targets), cut

    def _embed(self, llm_inputs: LLMInputs, embeds: Tensor | Sequence[Tensor]) -> Tensor:
        """Input embeddings [B, L, H] with the audio's, [A, H] of each clip, in their places.

        Where a family scales its embeddings (Gemma: by sqrt(H)), its embedding module has done so for the
        text; the audio is not scaled: its projection learns the size that the first layer wants.
        """
        inputs = self.llama_model.get_input_embeddings()(to_device(llm_inputs.token_ids, self.device))
        audio = to_device(torch.cat([*embeds]), self.device).to(inputs.dtype)
        return inputs.index_put(self._places(llm_inputs.is_audio), audio)

    def _places(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns [N] of a mask [B, L], counted on the host: the device would have to be waited for."""
        rows, columns = mask.nonzero(as_tuple=True)
        return to_device(rows, self.device), to_device(columns, self.device)

    def _causal_lm(self) -> PreTrainedModel:
        return self.llama_model.get_base_model() if self.config.lora else self.llama_model

    def lending(self) -> AbstractContextManager[None]:
        """Inside, ranks may answer as much as each likes, also with a sharded LLM: see `sharding.lending`."""
        return lending(self._causal_lm())

    # ---- embeddings -> text

    @torch.no_grad()
    def generate(
        self,
        samples: Samples,
        settings: Mapping[str, Any] | DictConfig | None = None,
        prompts: Sequence[str] | None = None,
        return_details: bool = False,
        **library: Any,
    ) -> list[Any]:
        """Answer each sample; every row ends by itself.

        `settings`: a `generate` section. `prompts`: complete templated strings; else samples["prompts"],
        else the test prompts of the samples' tasks. Returns texts without special tokens, or with
        `return_details` {"text", "token_ids" (the end symbol included), "finished" (it was seen)}.
        `library` goes to transformers' generate as it is, e.g. stopping_criteria or, for one beam, a streamer.
        """
        chosen = prompts or samples.get("prompts") or self._test_prompts(samples)
        heard = self.encode_and_spell(samples["raw_wav"], samples.get("padding_mask"), samples.get("spectrogram"))
        details = self.answer_embeds(heard[0], chosen, settings, heard[1], **library)
        return details if return_details else [detail["text"] for detail in details]

    @torch.no_grad()
    def answer_embeds(
        self,
        embeds: Tensor | Sequence[Tensor],
        chosen: Sequence[str],
        settings: Mapping[str, Any] | DictConfig | None = None,
        spelling: Sequence[Tensor] = (),
        **library: Any,
    ) -> list[dict[str, Any]]:
        """Answer the prompts about encoded audio, [B, A, H] or each clip's [A, H]: `generate`'s second half.

        `chosen`: one complete templated string per row. `spelling`: each clip's audio tokens [A, H], which
        `generate.ctc_weight` wants; the rest and the details returned as for `generate`.
        """
        search = generate_config(settings)
        how = search_settings(search, self.tokenizer.bos_token_id, self.end_id)
        how["logits_processor"] += self._joint_scores(spelling, chosen, search.ctc_weight)
        n_audio = [len(clip) for clip in embeds]
        llm_inputs = build_llm_inputs(self.tokenizer, n_audio, chosen, [[]] * len(embeds), left_padded=True)
        inputs, is_used = self._embed(llm_inputs, embeds), llm_inputs.is_used.to(self.device)
        set_adapter_precision(self._adapted)
        if search.num_beams > 1:
            library["past_key_values"] = prefill(self._causal_lm(), inputs, is_used, search.num_beams)
        output = self.llama_model.generate(inputs_embeds=inputs, attention_mask=is_used.long(), **how, **library)
        return [answer(ids, self.tokenizer, self.end_id) for ids in output.tolist()]

    def _joint_scores(self, spelling: Sequence[Tensor], chosen: Sequence[str], weight: float) -> list[JointScores]:
        """What CTC says of the answers to those prompts that ask for a transcript, if there are any."""
        if weight and not self.config.spelled_tokens:
            raise UserError(NOTHING_SPELLED)
        places = [i for i, prompt in enumerate(chosen) if prompt == self.test_prompts.get(TRANSCRIPT)]
        if not (weight and spelling and places):
            return []
        clips = self.all_log_probs([to_device(spelling[i], self.device) for i in places])
        return [JointScores(dict(zip(places, clips, strict=True)), len(chosen), weight, self.end_id)]

    def _test_prompts(self, samples: Samples) -> list[str]:
        if not self.test_prompts or "task" not in samples:
            raise UserError(
                "generate needs prompts: prompts=[...], samples['prompts'], or model.test_prompt_path with tasks"
            )
        questions = samples.get("Q") or [""] * len(samples["task"])
        pool = {task: [prompt] for task, prompt in self.test_prompts.items()}
        return prompts.choose_prompts(pool, samples["task"], questions, source="model.test_prompt_path")


def load_for_inference(config: DictConfig) -> SALMONN:
    """The model of a whole checked config in evaluation mode, on the device and with the seed that `run` says.

    Training prompts are not read: it is asked, not trained. Raises UserError as `SALMONN.from_config`.
    """
    torch.manual_seed(config.run.seed)
    asked = OmegaConf.merge(config.model, {"prompt_path": ""})
    return SALMONN.from_config(asked, device_of(config), is_shared(config.run.shard_llm)).eval()
