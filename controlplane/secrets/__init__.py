"""Provider secrets at rest."""
