"""Training on pods, looked at before anyone has one."""
