"""The training losses (eqs. 8-12, 15), each a plain function of tensors."""
