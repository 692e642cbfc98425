"""Tables, plots and report.html of the comparison."""
