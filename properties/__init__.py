"""The laws of the linear cross-entropy as a pytest suite: ``pytest --pyargs ccelab.properties --variant cce``."""
