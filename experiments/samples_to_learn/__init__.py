"""The study of docs/samples_to_learn.md: how many samples recipes of stage 1 need until a model listens."""
