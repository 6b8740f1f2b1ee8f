"""One folder per op: api (public function), reference (the spec), autograd (torch.library registration)."""
