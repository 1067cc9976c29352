"""What is known of model classes: names, fusions, tensor parallelism, MLPs, experts, expected tensors."""
