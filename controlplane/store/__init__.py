"""The only SQL of the control plane."""
