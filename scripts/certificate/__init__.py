"""The certificate: whether a verdict, a mask and a map follow the tumor, measured by interventions with controls.

Of a run of ours or of anybody's model. Imports what evaluates, never what reports."""
