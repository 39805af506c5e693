"""Master, recorder, worker and agent in one process, step by step, for histories in which anything may happen."""
