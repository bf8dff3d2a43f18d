"""The update pipeline: the steps that process a site's change of the shared parameters before it is sent, one file for each step."""
