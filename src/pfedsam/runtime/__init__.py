"""Runtime: where the sites of a federation run; the method never learns which one it is."""
