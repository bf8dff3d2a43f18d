"""Deployment over several machines, on NVFlare 2.9: one long-lived process per site, mutual TLS, filters that the site owns.

The engine is imported nowhere else. It carries our messages and starts our processes; what is asked, answered, averaged and let
out is decided in `engine.rounds`, `engine.site_agent` and `federation.site_policy`, which do not know it.
"""
