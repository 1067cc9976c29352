"""Decided from headers: options, survey, repair, output tensors and files, manifest."""
