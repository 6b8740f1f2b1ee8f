"""Models, data and experiments that use `mixpol_kernels`."""
