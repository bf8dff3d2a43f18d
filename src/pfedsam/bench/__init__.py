"""Research benchmarks: comparisons of methods over seeds, ablations, few labels and onboarding on a suite of sites."""
