"""How stored bytes become codes, and codes bytes: packings, kernels, moves."""
