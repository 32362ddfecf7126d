"""One evaluation from a configuration to its results."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn import SALMONN, distributed
from salmonn.annotations import Annotations
from salmonn.dataset import SALMONNDataset
from salmonn.errors import UserError
from salmonn.evaluation.generation import generate_outputs
from salmonn.evaluation.jobs import plan_jobs, swap_audio
from salmonn.evaluation.report import build_report, prediction_lines, summary, write_report, write_text
from salmonn.evaluation.submission import submission_csv
from salmonn.evaluation.tasks import MODES, EvalTask, annotation_key, clips_of
from salmonn.preflight import require_ready
from salmonn.prompts import load_test_prompts
from salmonn.run_log import setup_logging


def evaluate(config: DictConfig, mode: str) -> None:
    """Generate one set and score it, or write its submission; rank 0 prints and writes the results.

    Raises UserError for whatever is missing or contradictory, before the model is loaded.
    """
    task = MODES[mode]
    key = annotation_key(config.datasets, task)
    if not config.run.use_distributed and int(os.environ.get("RANK", 0)) > 0:
        return  # the first process evaluates alone
    setup_logging()
    if distributed.is_local_main():  # one process looks; the others wait for it where all join
        require_ready(config, (key,), training=False)
    if not config.model.test_prompt_path:
        raise UserError("model.test_prompt_path is not set: evaluation asks each task's test prompt")
    prompts = load_test_prompts(config.model.test_prompt_path, config.model.prompt_template)

    started = time.monotonic()
    device = distributed.init(config)
    try:
        torch.manual_seed(config.run.seed)
        source = config.datasets[key]
        annotations = Annotations(source, need_text=not task.is_submission)
        dataset = SALMONNDataset.from_config(annotations, config.datasets, replace_broken=False)
        # as written, without the default task: here the mode knows better
        clips = clips_of([annotations.as_written(i) for i in range(len(annotations))], task, source)
        jobs = plan_jobs(clips, prompts, config.model.test_prompt_path)
        shuffled_control = config.evaluate.shuffled_control and not task.is_submission
        if shuffled_control:
            swap_audio(jobs)  # a set that is too small is told before the model is loaded
        folder = _results_folder(config, task)
        model = SALMONN.from_config(config.model, device=device).eval()
        dataset.max_seconds = model.max_seconds

        outputs = generate_outputs(model, dataset, jobs, config, mode)
        heard = [job for job in jobs if not outputs[job.position].unreadable]
        if not heard:
            raise UserError(
                f"{source}: none of the {len(clips)} clips can be read, e.g. {clips[0].path}: {outputs[0].unreadable}; "
                f"is datasets.prefix = {config.datasets.prefix!r} right?"
            )
        swapped = None
        if shuffled_control:
            swapped = generate_outputs(model, dataset, swap_audio(heard), config, f"{mode}, shuffled audio")
        if distributed.is_main():
            report = build_report(task, clips, outputs, swapped, config.model.whisper_path)
            if not config.model.ckpt:
                report["notes"].insert(0, "NO CHECKPOINT (model.ckpt is empty): connector and LoRA are untrained.")
            report |= {
                "annotation": source,
                "entries": len(dataset),
                "checkpoint": config.model.ckpt,
                "generate": OmegaConf.to_container(config.generate),
                "processes": distributed.world_size(),
                "seconds": round(time.monotonic() - started, 1),
            }
            _publish(folder, config, task, report, prediction_lines(clips, jobs, outputs, swapped))
    finally:
        distributed.shutdown()


def _results_folder(config: DictConfig, task: EvalTask) -> Path:
    """Made before the long work, so that a folder that cannot be written is known at once."""
    folder = Path(config.evaluate.results_dir) / (config.evaluate.name or task.mode)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"evaluate.results_dir = {config.evaluate.results_dir}: {error}") from error
    return folder


def _publish(
    folder: Path, config: DictConfig, task: EvalTask, report: dict[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> None:
    if task.is_submission:
        ids, texts = [line["id"] for line in predictions], [line["text"] for line in predictions]
        write_text(folder / "submission.csv", submission_csv(ids, texts))
        report["notes"].append(f"Submission: {folder / 'submission.csv'}, {len(ids)} rows.")
        if config.evaluate.shuffled_control:
            report["notes"].append("evaluate.shuffled_control was not run: a submission has no scores to compare.")
    write_report(folder, report, predictions)
    print(f"\n{task.mode}: {task.title}\n\n{summary(report)}\n\nResults: {folder}/", flush=True)
