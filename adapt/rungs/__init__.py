"""Everything that adapts, behind one interface: mixtures, channel statistics, last layer, first layers."""
