"""Engine: the round loop, the agent of a site, and the files of runs and studies."""
