"""HTTP wires: each an adapter that parses to, and renders from, the same internal request and answer."""
