"""From rows to what a data plane needs, and on to the streams of the data planes."""
