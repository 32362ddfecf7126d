"""Which annotation files a run reads, the data sets made of them, and the batches it trains on."""

from collections.abc import Iterator

from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.common.samples import Samples
from salmonn.config.missing_files import annotation_keys
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.filtering import usable_entries
from salmonn.data.loader import train_loader
from salmonn.model.meta_model import heard_seconds
from salmonn.training.progress import Plan, Progress


def open_datasets(config: DictConfig) -> dict[str, SALMONNDataset]:
    """The usable entries of each file; only in training another clip takes an unreadable one's place."""
    found, max_seconds = {}, heard_seconds(config.model)
    for key in annotation_keys(config):
        annotations = Annotations(config.datasets[key])
        found[key] = SALMONNDataset.from_config(
            annotations,
            config.datasets,
            usable=usable_entries(annotations, config.datasets),
            max_seconds=max_seconds,
            replace_unreadable=key == "train_ann_path",
            seed=config.run.seed,
        )
    return found


def training_batches(dataset: SALMONNDataset, run: DictConfig, plan: Plan, progress: Progress) -> Iterator[Samples]:
    """This rank's micro-batches without end, from where the run is."""
    # the mean over a step's tokens is the same however the step is cut into micro-batches
    sorts_steps = run.accum_grad_iters > 1 and run.loss_average == "token"
    loader = train_loader(
        dataset,
        run.batch_size_train,
        run.num_workers,
        distributed.rank(),
        distributed.world_size(),
        run.seed,
        first_sample=progress.samples,
        steps=plan.step_sizes(progress.epoch_iteration) if sorts_steps else None,
    )
    return iter(loader)
