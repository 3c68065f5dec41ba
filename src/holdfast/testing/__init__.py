"""A simulated cluster: real nodes on a virtual clock and simulated servers, as a function of a seed."""
