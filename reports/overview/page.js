"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent).charts;
  const figures = [...document.querySelectorAll(".chart")];
  const slider = document.getElementById("smoothing"), output = document.getElementById("smoothed");
  const draw = () => {
    const weight = Number(slider.value);
    output.textContent = weight.toFixed(2);
    figures.forEach((figure, number) => {
      figure.querySelectorAll("[data-smooth]").forEach((path, index) => {
        const [xs, ys] = charts[number].lines[index];
        let mean = 0, total = 0, text = "";
        xs.forEach((x, at) => {
          mean = weight * mean + (1 - weight) * ys[at];
          total = weight * total + 1 - weight;
          text += (at ? "L" : "M") + x + " " + (mean / total).toFixed(1);
        });
        path.setAttribute("d", text);
      });
    });
  };
  slider.addEventListener("input", draw);
  slider.closest(".slide").hidden = false;
})();
