"""Report: the event log that a run writes, the summary at its end, and the tables, figures and pages made from them."""
