"""Every configuration key with its type and default; names are the published ones where they exist.

Each default lives here and nowhere else; YAML files only hold what differs.
"""

from dataclasses import dataclass, field


@dataclass
class ModelConfig:
    """The parts of the model, what of them is trained, and the prompt."""

    llama_path: str = ""  # folder (or hub name) of the language model
    whisper_path: str = ""  # folder (or hub name) of Whisper
    beats_path: str = ""  # published BEATs .pt file; "" trains without BEATs
    ckpt: str = ""  # SALMONN checkpoint to start from
    token: str = ""  # hub access token for gated models
    max_seconds: float = 30.0  # of a clip that are heard; less makes Whisper's window (and its cost) shorter
    whisper_silence: float | None = None  # s behind a clip that Whisper hears; null: all of its window
    only_filled_windows: bool = False  # True: no audio tokens for windows in which the clip is over
    spelled_tokens: bool = False  # True: the LLM reads what a connector of stage 0 spells, without blanks
    sound_seconds: float | None = None  # beside it a token for each so many s of how it sounds; null: none
    freeze_whisper: bool = True  # do not train Whisper
    freeze_beats: bool = True  # do not train BEATs
    use_speech_Qformer: bool = True  # as published; there is no model without a Q-Former here
    freeze_speech_QFormer: bool = False  # do not train the Q-Former and its queries
    window_level_Qformer: bool = True  # False: one window over the whole clip
    num_speech_query_token: int = 1  # queries per window
    second_per_window: float = 0.333333  # length of a window in s
    second_stride: float = 0.333333  # from one window to the next in s
    qformer_hidden_size: int = 768  # width of the Q-Former
    qformer_num_layers: int = 2  # its layers
    qformer_num_heads: int = 12  # its attention heads
    qformer_intermediate_size: int = 3072  # width of its feed-forward layers
    speech_llama_proj_model: str = ""  # checkpoint to take parameters from before `ckpt`
    freeze_speech_llama_proj: bool = False  # do not train the projection into the language model
    lora: bool = True  # train LoRA adapters in the language model
    lora_rank: int = 8  # of the adapters
    lora_alpha: float = 32  # their scaling times lora_rank, as trained
    lora_dropout: float = 0.1  # in front of the adapters in training
    lora_scaling: float | None = None  # weight of the adapters' output; null = lora_alpha / lora_rank, as trained
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # layers with an adapter
    multi_prompt: bool = True  # False: one prompt for all samples of a single-task batch
    prompt_path: str = ""  # JSON {task: [prompt, ...]}
    test_prompt_path: str = ""  # JSON {task: prompt}
    prompt_template: str = "USER: {}\nASSISTANT:"  # what stands around a prompt
    max_txt_len: int = 300  # tokens of a target, end symbol included
    end_sym: str = "</s>"  # token that ends an answer
    low_resource: bool = False  # published name of llm_quantization: 8bit
    llm_quantization: str = "none"  # none | 8bit | nf4 | int8 (8 bits both ways)
    llm_dtype: str = "auto"  # auto (float16 on GPU as published, bfloat16 with bf16 AMP; float32 on CPU) | ...
    llm_attention: str = "auto"  # auto (what is fastest, mostly sdpa) | sdpa (less memory) | eager
    gradient_checkpointing: bool = False  # of the LLM: memory for time
    encoder_dtype: str = "float32"  # weights of frozen encoders: float32 | float16 | bfloat16
    device_8bit: int = 0  # GPU of a quantised model when torchrun gives no local rank


@dataclass
class DatasetsConfig:
    """Annotation files, where their clips lie, and what is left out."""

    prefix: str = ""  # joined in front of each annotation's path
    train_ann_path: str = ""  # annotation file to train on
    valid_ann_path: str = ""  # the one that picks the best checkpoint
    test_ann_path: str = ""  # the one of run.evaluate, and of evaluate.py where a mode has none of its own
    valid_ann_path_asr: str = ""  # evaluate.py --mode valid_asr
    valid_ann_path_aac: str = ""  # evaluate.py --mode valid_aac
    test_ann_path_asr: str = ""  # evaluate.py --mode submission_asr
    test_ann_path_aac: str = ""  # evaluate.py --mode submission_aac
    whisper_path: str = ""  # accepted as published; features are made as model.whisper_path says
    path_map: list[dict[str, str]] = field(default_factory=list)  # [{from: annotated folder, to: folder here}]
    channel: str = "first"  # first (as published) | mean
    expand_cut: str = "head"  # of a clip with its expand_wav beyond 30 s: head (as published) | share the time
    integrity: str = "header"  # left out before training: off | header | decode | verified
    verdicts: str = "ann/verdicts.jsonl"  # of the inspector's --check-integrity; read when integrity is verified
    quarantine: str = ""  # quarantine.jsonl of an earlier run: the files in it are left out
    max_clip_seconds: float = 0.0  # longer clips are left out before training; 0 = none (paper: WavCaps over 180 s)
    max_bad_fraction: float = 0.05  # of the entries tried in training (from 500 on); more unreadable ones end the run


@dataclass
class OptimsConfig:
    """AdamW, Muon beside it, and the schedule of their rate."""

    max_epoch: int = 30  # epochs of the run
    warmup_steps: int = 3000  # iterations in which the rate rises to init_lr
    warmup_start_lr: float = 1e-6  # below 0: no ramp, start at init_lr
    init_lr: float = 3e-5  # highest learning rate
    min_lr: float = 1e-5  # the rate at the end of the cosine
    weight_decay: float = 0.05  # of AdamW; biases and norms have none
    beta2: float = 0.999  # of AdamW
    lora_lr_factor: float = 1.0  # rate of the LoRA parameters, as a multiple of the others'
    muon_lr_factor: float = 0.0  # Muon's rate for the matrices of Q-Former and projection, likewise; 0 = all AdamW
    grad_clip_norm: float = 0.0  # global norm of the unscaled gradients; 0 = no clipping


@dataclass
class RunConfig:
    """A training run: folder, sizes, processes, precision."""

    objective: str = "answer"  # stages 1 to 3: the LLM's answer | ctc: stage 0, the connector spells by itself
    ctc_tasks: list[str] = field(default_factory=lambda: ["asr"])  # whose texts follow the audio; others are left out
    ctc_negatives: int = 1500  # random tokens that the batch's own are told from
    ctc_weight: float = 0.0  # objective answer: of CTC on the clips of ctc_tasks beside the answer's loss; 0 = none
    ctc_until: float = 1.0  # share of the run after which that has faded out
    seed: int = 42  # of everything that is drawn
    output_dir: str = "output"  # where runs write, each into a folder of its own
    exp_name: str = ""  # folder inside output_dir; "" = the config file's name
    overwrite: bool = False  # True: start anew, whatever the run's folder holds
    resume: str = ""  # "": with the folder's run, if it is this experiment | auto: also if not | none | checkpoint
    save_every_steps: int = 0  # optimiser steps between checkpoints inside an epoch; 0 = only after epochs
    save_every_minutes: float = 30.0  # the same by the clock; 0 = not
    keep_checkpoints: int = 2  # to go on from; checkpoint_best.pth comes on top
    evaluate: bool = False  # only validate, on datasets.test_ann_path
    log_freq: int = 5  # iterations between log lines; each waits for the end of its step
    wandb_project: str = ""  # draw TensorBoard's curves at wandb, too, in this project; "" = no wandb
    epoch_based: bool = False  # True: an epoch is one pass over the data
    iters_per_epoch: int = 3000  # iterations of an epoch that is not epoch_based
    valid_every_steps: int = 0  # optimiser steps between validations inside an epoch; 0 = only after epochs
    accum_grad_iters: int = 1  # iterations of an optimiser step
    loss_average: str = "token"  # over all target tokens of a step | batch: of batch means, as published
    batch_size_train: int = 8  # per process
    batch_tokens: str = ""  # LLM tokens of a micro-batch, padding counted, instead of clips | auto: as fit the GPU
    batch_seconds: float = 0.0  # with batch_tokens: of audio in it, Whisper's window for each clip; 0 = not limited
    batch_size_eval: int = 8  # clips at once in validation and evaluation, per process
    num_workers: int = 8  # loader processes per rank
    loader_timeout_minutes: float = 10.0  # for a batch; less than timeout_minutes, or the other ranks give up first
    encoder_cache: str = ""  # folder for outputs of the frozen encoders: each clip is encoded once; "" = off
    encoder_cache_gb: float = 20.0  # that it may take; 30 s of audio take 12 MB in float32, 10 s 9 MB
    device: str = "cuda"  # cpu | cuda | cuda:N
    use_distributed: bool = True  # False: ignore the environment of torchrun and Slurm
    shard_llm: bool = False  # True: each process holds a share of the LLM, for one that a card cannot hold
    timeout_minutes: float = 30.0  # that ranks wait for each other: one that hangs ends the run after this
    amp: bool = True  # mixed precision
    amp_dtype: str = "fp16"  # fp16 (with loss scaling) | bf16
    compile: bool = False  # the layers of encoders, Q-Former and LLM (but not of a quantised one): slow first steps
    world_size: int = 1  # accepted as published; torchrun or srun decides
    dist_url: str = "env://"  # how ranks meet: env:// (torchrun, srun) | tcp://HOST:PORT | file://FILE
    optims: OptimsConfig = field(default_factory=OptimsConfig)


@dataclass
class GenerateConfig:
    """The search for an answer."""

    max_new_tokens: int = 200  # longest answer
    num_beams: int = 4  # of the search; with 1 an answer appears word by word
    do_sample: bool = False  # draw tokens instead of taking the likeliest
    min_length: int = 1  # shortest answer in tokens
    temperature: float = 1.0  # of sampling
    top_p: float = 0.9  # of sampling: the likeliest tokens with so much probability
    repetition_penalty: float = 1.0  # above 1: repeats are less likely
    length_penalty: float = 1.0  # of beams; above 0 favours long answers
    ctc_weight: float = 0.0  # above 0: transcripts are searched together with CTC (model.spelled_tokens)


@dataclass
class JudgeConfig:
    """Who judges answers that no string comparison can."""

    kind: str = "containment"  # who says whether an answer (SQQA, SF, SAC) is right: containment | openai | local
    base_url: str = "https://api.openai.com/v1"  # openai: any compatible endpoint, without /chat/completions
    model: str = ""  # openai: the model's name there
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key, never the key itself; "" = no key
    local_path: str = ""  # local: folder (or hub name) of a causal LM
    max_tokens: int = 16  # of a verdict; more for a judge that thinks before it answers
    concurrency: int = 4  # questions at once: requests under way, or a local model's batch
    timeout_s: float = 60.0  # of a request
    max_tries: int = 5  # of a request that fails in a way that may pass


@dataclass
class EfficiencyConfig:
    """Measuring latency and memory."""

    protocol: str = "ours"  # ours | hackathon: what the public hackathon's own script times
    seconds: float = 10.0  # of synthetic audio, as there
    new_tokens: int = 50  # of each answer; hackathon: one decoding step
    runs: int | None = None  # that are measured; null: 10, hackathon: 100
    warmup: int | None = None  # runs before these; null: 2, hackathon: 10
    num_beams: int = 1  # as there


@dataclass
class EvaluateConfig:
    """Where results go, and how they are come by."""

    results_dir: str = "results"  # where results go, each into a folder of its own
    name: str = ""  # folder inside results_dir; "" = the mode
    tasks_file: str = "configs/eval_tasks.yaml"  # tasks of evaluate.py --mode table3
    submission_lower_case: bool = False  # write the texts of submission.csv in lower case
    shuffled_control: bool = False  # score once more with the audio shuffled between clips
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)


@dataclass
class Config:
    """A whole configuration file."""

    stages: list[str] = field(default_factory=list)  # instead of all sections: config files to train after each other
    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: DatasetsConfig = field(default_factory=DatasetsConfig)
    run: RunConfig = field(default_factory=RunConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
