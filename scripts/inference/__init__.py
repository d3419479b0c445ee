"""From a file to an answer: inferers, postprocessing, volumes, scope, uncertainty, prediction of folders.

May import what training may, `scripts.explain`, `scripts.pictures`, and the weights of `scripts.training`."""
