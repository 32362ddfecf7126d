"""Train SALMONN: `torchrun train.py --cfg-path configs/stage1.yaml`; see `python train.py --help`."""

from salmonn.commands import train

if __name__ == "__main__":
    train()
