"""Model: frozen SAM, the shared LoRA, the local mixture of experts, and the partition of their parameters."""
