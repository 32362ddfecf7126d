"""How `lmms-eval --model salmonn` finds the model: an entry point of the group lmms_eval.models, in pyproject.toml."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """What lmms-eval asks for when it lists models; the model's own module loads when it is chosen."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="salmonn", simple_class_path="salmonn.serve.lmms_eval_model.Salmonn")
