"""Report: a run's records, its summary, and the tables, figures and page made from them."""
