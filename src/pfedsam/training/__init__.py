"""Training: one client round at one site (losses, distillation, the global and the local phase)."""
