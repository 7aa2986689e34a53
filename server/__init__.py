"""The decision server: engines, decide pipeline, policy, wires, command line."""
