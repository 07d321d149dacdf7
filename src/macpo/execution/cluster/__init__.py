"""Stages on a Ray cluster.

executor   walks a plan: which stage is ready, what came of it, what is begun anew
ray        all that is asked of Ray: connecting, nodes, tasks
mailbox    what running stages tell the driver, and the driver them
work       what a worker does: the same code that the local executor runs, and reports
shared     is the store the same folder on all nodes, and do locks reach them

The driver is the scheduler and the store the only state: a driver that is started again finds in
the store what is done, and nothing else is kept anywhere.
"""
