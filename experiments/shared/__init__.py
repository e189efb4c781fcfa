"""Code that all experiments share: flags, sweep, records, table, plot."""
