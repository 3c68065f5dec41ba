"""Simulations: real nodes on a virtual clock, with simulated servers, as a function of a seed."""
