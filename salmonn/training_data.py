"""Which annotation files a run reads, and the data sets made of them."""

from omegaconf import DictConfig

from salmonn.annotations import Annotations
from salmonn.data_filter import usable_entries
from salmonn.dataset import SALMONNDataset


def annotation_keys(config: DictConfig) -> tuple[str, ...]:
    """Keys of the datasets section that a run reads."""
    return ("test_ann_path",) if config.run.evaluate else ("train_ann_path", "valid_ann_path")


def open_datasets(config: DictConfig) -> dict[str, SALMONNDataset]:
    """The usable entries of each file; only in training another clip takes a broken one's place."""
    found = {}
    for key in annotation_keys(config):
        annotations = Annotations(config.datasets[key])
        found[key] = SALMONNDataset.from_config(
            annotations,
            config.datasets,
            usable=usable_entries(annotations, config.datasets),
            replace_broken=key == "train_ann_path",
            seed=config.run.seed,
        )
    return found
