"""Evaluate a SALMONN: `python evaluate.py --mode table3`; see `python evaluate.py --help`."""

from salmonn.commands import evaluate

if __name__ == "__main__":
    evaluate()
