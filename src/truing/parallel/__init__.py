"""From one process to many: the only importer of torch.distributed."""
