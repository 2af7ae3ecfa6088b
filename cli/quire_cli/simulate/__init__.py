"""`quire simulate`: scheduler, block manager, router choice and autoscaler in simulated time, over a model of what a step costs."""
