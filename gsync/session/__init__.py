"""What a session is, what it is told and what it tells: settings, wanted state, checkpoints, status, reports."""
