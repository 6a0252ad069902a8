"""Reports: one self-contained HTML page, plots and tables of a results directory.

    from enginehouse.report.write import write_report

Importing this package loads none of its extras.
"""
