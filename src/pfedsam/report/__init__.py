"""Report: what a run writes down while it goes (records), what it ends with (summary), and how people see it."""
