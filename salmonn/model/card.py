"""The card of a published model: what it is, what it needs, what it was trained on, its scores and licences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from salmonn.model.lineage import Training

_PARTS = {"llama_path": "language model", "whisper_path": "Whisper", "beats_path": "BEATs"}
_NO_SCORES = "None came with this card."


def model_card(
    name: str, model: Mapping[str, Any], lineage: Sequence[Training], licence: str = "", scores: str = ""
) -> str:
    """The card as the hub reads it. `licence`: as the hub calls it, such as apache-2.0; `scores`: Markdown."""
    head = {
        "license": licence or "other",
        **({} if licence else {"license_name": "not-stated"}),
        "library_name": "salmonn",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["salmonn", "speech", "audio", "music"],
    }
    parts = {what: Path(model[key]).name for key, what in _PARTS.items() if model.get(key)}
    needs = "\n".join(f"- {what}: `{part}`" for what, part in parts.items())
    places = ", ".join(f'{key}="..."' for key in _PARTS if model.get(key))
    return f"""---
{OmegaConf.to_yaml(head).strip()}
---

# {name.partition("/")[2] or name}

A [SALMONN](https://arxiv.org/abs/2310.13289): a language model that answers questions about speech, sounds and music.
Here are its trained parts alone, the connector and the LoRA adapters. They need beside them, as they were trained with:

{needs}

## Use

```python
from salmonn import SALMONN

model = SALMONN.from_pretrained("{name}", {places}, prompt_path="", test_prompt_path="")
```

## Trained on

{_trained(lineage)}

## Scores

{scores or _NO_SCORES}

## Licence

{f"These parts: {licence}." if licence else "Whoever published these parts has named no licence."} The parts that they \
need have licences of their own, and so have the corpora of the training.
"""


def _trained(lineage: Sequence[Training]) -> str:
    """A line per run, the last one last."""
    if not lineage:
        return "Its checkpoint does not say."
    return "\n".join(f"{number}. {_told(run)}" for number, run in enumerate(lineage, start=1))


def _told(run: Training) -> str:
    if not run.tasks:
        return f"`{run.run}`, of which nothing is known"
    return f"`{run.run}`: {run.step:,} iterations on `{run.data}` ({', '.join(run.tasks)})"
