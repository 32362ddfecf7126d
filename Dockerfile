# SALMONN on NVIDIA GPUs: the packages and the code; weights, data and results stay outside.
#
#   docker build -t salmonn .
#   docker run --rm -it --gpus all --shm-size=1g --user "$(id -u):$(id -g)" \
#       -v "$PWD/weights:/salmonn/weights" -v "$PWD/data:/salmonn/data" -v "$PWD/ann:/salmonn/ann" \
#       -v "$PWD/output:/salmonn/output" salmonn torchrun --nproc_per_node=4 train.py --cfg-path configs/stage1.yaml
#
# --shm-size: the processes of several GPUs exchange through /dev/shm, of which a container has only 64 MB by itself.
# Without a command it says what is missing (python -m salmonn.doctor). The web page: -p 7860:7860 salmonn python -m
# salmonn.web --host 0.0.0.0. Without Docker, on a machine with a driver and Python 3.11 or 3.12:
#
#   python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python -m salmonn.doctor
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# The packages bring the CUDA libraries that torch was built with; of the base only the driver's hooks are used.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /salmonn
COPY requirements.txt ./
RUN python3 -m venv /venv && /venv/bin/pip install -r requirements.txt
ENV PATH=/venv/bin:$PATH

COPY . .
USER 1000:1000
CMD ["python", "-m", "salmonn.doctor"]
