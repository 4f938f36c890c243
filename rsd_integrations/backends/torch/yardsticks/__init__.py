"""What speed is measured with and against: models of true shapes, plain ``generate``, memory bandwidth."""
