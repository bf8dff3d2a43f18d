"""The research benches: suites, comparisons over seeds, ablations, few labels, onboarding."""
