"""The network and its losses: tensors in, tensors out.

Imports `config` and `vatt.batch`; neither files nor PyAV nor Lightning. Start with `model.VATT`,
then `tokens`, `layers` and `heads`; the losses begin in `contrastive_loss`.
"""
